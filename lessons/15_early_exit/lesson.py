# %% [markdown]
# # Lesson 15
