"""A recorded trace replayed: decisions, their execution, their outcome, and what hindsight could have reached."""
