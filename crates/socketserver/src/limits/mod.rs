//! Every limit there is, of the library and of the programs: its default, what happens when it is
//! reached, what counts that, and how it is changed. This page has no items.
//!
#![doc = include_str!("limits.md")]

#[cfg(test)]
mod table;
#[cfg(all(
    test,
    feature = "framing",
    feature = "green",
    feature = "metrics",
    feature = "proxy"
))]
mod tests;

#[cfg(test)]
pub(crate) use table::{bytes, number, time};

/// The limits that a room knows: the names of rows, and the defaults.
#[cfg(test)]
pub(crate) type Told = Vec<(&'static str, String)>;

#[cfg(test)]
pub(crate) fn or_none<T>(limit: Option<T>, written: impl FnOnce(T) -> String) -> String {
    limit.map_or_else(|| "none".to_owned(), written)
}
