//! Stacks for coroutines: allocation, guards, and the report of an overflow.

pub(crate) mod overflow;
mod slab;

pub(crate) use slab::{SlabStack, Stacks};

/// The method that guards the end of each stack, so that an overflow is caught and never overwrites
/// other memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuardPages {
    /// Uses `MADV_GUARD_INSTALL` (Linux 6.13), which costs nothing per stack. Older kernels fall
    /// back to `mprotect`.
    #[default]
    Auto,
    /// Uses `mprotect(2)`, which splits the mapping at every stack. `vm.max_map_count`, 65,530 by
    /// default, then allows about 32,000 stacks in the whole process.
    Mprotect,
}
