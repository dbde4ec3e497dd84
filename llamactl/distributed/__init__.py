"""Several processes that train one model: launch, collectives, DDP and FSDP, DTensors."""
