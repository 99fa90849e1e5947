# %% [markdown]
# # Lesson 07
