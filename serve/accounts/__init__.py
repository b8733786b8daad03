"""Who may do how much, and what they did: keys, limits, users, the usage ledger, the audit log.

`limits` and `ledger` are on the way of every request: memory only, never a disk. `auth` knows the
keys of this moment. `store` alone speaks to the database, `passwords` alone to Argon2. Nothing here
knows HTTP beyond the value of an Authorization header.
"""
