"""Fused kernels behind the losses; each is a `torch.library` operator."""
