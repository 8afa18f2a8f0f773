"""The guest's serial console and screen."""
