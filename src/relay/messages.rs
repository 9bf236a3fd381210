//! stand-in until codec
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PairId(Vec<u8>);
impl PairId {
    pub(crate) fn new(b: &[u8]) -> Option<Self> {
        Some(Self(b.to_vec()))
    }
}
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct SideId(String);
impl SideId {
    pub(crate) fn new(b: &str) -> Option<Self> {
        Some(Self(b.to_owned()))
    }
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Instance(pub(crate) [u8; 8]);
