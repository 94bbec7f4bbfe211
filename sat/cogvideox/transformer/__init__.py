"""The diffusion transformer: a SAT BaseModel composed of mixins, one file per mixin. Start at model.py."""
