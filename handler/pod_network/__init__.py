"""From the interfaces of the launcher's pod to the cards of its guest."""
