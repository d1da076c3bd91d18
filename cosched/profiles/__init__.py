"""Models and devices: how much work a layer is, and how long it takes."""
