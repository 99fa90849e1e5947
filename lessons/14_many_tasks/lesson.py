# %% [markdown]
# # Lesson 14
