"""The encodings that the format builds on: envelope, FlatBuffers, FlexBuffers."""
