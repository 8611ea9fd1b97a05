//! A volume: distribute over replicated or plain sets.
