"""The maths of diffusion: noise schedule, per-sample randomness, loss, guidance and samplers. No network
lives here."""
