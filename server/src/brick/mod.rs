//! One brick: store, namespace, set log and sessions behind one state machine.
