"""The price solver where resources are many: nothing here has resources x resources numbers."""
