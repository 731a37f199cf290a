"""PersistWorld (arXiv 2603.25685): an action-conditioned video diffusion model, post-trained on its own rollouts."""
