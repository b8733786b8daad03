"""Every new version of a policy, evaluated on the same seeds as it appears: a learning curve."""
