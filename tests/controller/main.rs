//! The controller on a simulated API server.
