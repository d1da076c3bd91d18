"""The price solver: tasks bid for resources at prices, and the prices that clear them bound every plan."""
