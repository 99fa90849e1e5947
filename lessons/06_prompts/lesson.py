# %% [markdown]
# # Lesson 06
