//! Panics that are caught: where a library may panic over damaged data, the panic becomes an error of one brick. All
//! other panics are bugs and end the process.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CAUGHT: Cell<u32> = const { Cell::new(0) };
}

/// Whether a panic on this thread would be caught by [`catch`].
pub fn is_caught() -> bool {
    CAUGHT.get() > 0
}

/// Runs `work`; a panic in it becomes `None`. What `work` changes must be thrown away then.
pub fn catch<T>(work: impl FnOnce() -> T) -> Option<T> {
    CAUGHT.set(CAUGHT.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(CAUGHT.get() - 1);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_none() {
        assert!(!is_caught());
        assert_eq!(catch(is_caught), Some(true));
        let broken: Option<()> = catch(|| panic!("as planned"));
        assert_eq!(broken, None);
        assert!(!is_caught());
    }
}
