"""Acting: environments that can be made, seeded, watched and restored, and the actor that fills the replay."""
