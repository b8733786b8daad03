"""The rules of `TextEnv` in executable form; `envs.testing` runs them and reports."""
