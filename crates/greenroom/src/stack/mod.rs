//! Stacks for coroutines: where they come from, what guards them, what an overflow says.

pub(crate) mod overflow;
mod slab;

pub(crate) use slab::{SlabStack, Stacks};

/// How the end of each stack is guarded, so that an overflow is caught and never overwrites
/// something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuardPages {
    /// By `MADV_GUARD_INSTALL` (Linux 6.13), which costs nothing per stack; on an older kernel by
    /// `mprotect`.
    #[default]
    Auto,
    /// By `mprotect(2)`, which splits the mapping at every stack: `vm.max_map_count`, 65,530 by
    /// default, then allows about 32,000 stacks in the whole process.
    Mprotect,
}
