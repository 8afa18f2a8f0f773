"""What kubelet is offered: KVM, taps, bridges; and how much memory a device may pin."""
