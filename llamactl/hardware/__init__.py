"""What this machine is: device, GPUs, throughput, memory and the limits on them."""
