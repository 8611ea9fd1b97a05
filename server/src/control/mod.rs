//! The control plane: volumes, bricks, views, options, sessions.
