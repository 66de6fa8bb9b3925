"""Acting: environments that are made, seeded, watched and restored, and the actor that fills the replay."""
