# %% [markdown]
# # Lesson 05
