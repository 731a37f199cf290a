"""PRTS (arXiv 2604.27472): a vision-language-action policy pretrained with language-conditioned contrastive RL."""
