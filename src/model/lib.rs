//! What a MIG-capable GPU can be cut into, and how that is offered to Kubernetes. Data and functions, no effects.
