"""The short-lived child process that turns a VMI into domain XML."""
