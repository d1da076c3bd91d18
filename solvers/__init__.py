"""Pure mathematics on arrays: tasks, operating points, shared resources, prices. Nothing of radio or LLMs."""
