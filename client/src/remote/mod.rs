//! One set as a client talks to it: views, sessions, numbered requests, retries.
