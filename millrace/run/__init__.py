"""Programs that put the packages together: the demo, replay, reports. They alone may import from all of them."""
