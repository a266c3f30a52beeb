//! The guests are in `examples/`; what they share is the library of `guest-tasks/`.
