//! One lock a key, made when it is first wanted and forgotten when nobody holds or awaits it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// Serialises work on equal keys and lets work on different keys pass.
#[derive(Debug)]
pub(crate) struct KeyedLocks<K> {
    locks: Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for KeyedLocks<K> {
    fn default() -> Self {
        Self { locks: Mutex::new(HashMap::new()) }
    }
}

impl<K: Eq + Hash + Clone> KeyedLocks<K> {
    /// Waits until nobody else works on `key`.
    pub(crate) async fn lock(&self, key: &K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // One reference is the map's own: such a lock is held and awaited by nobody.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(key.clone()).or_default())
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn equal_keys_exclude_each_other_and_leave_nothing() {
        let locks = KeyedLocks::default();
        let held = locks.lock(&1).await;
        let other = locks.lock(&2).await;
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), locks.lock(&1)).await.is_err());
        drop((held, other));
        let _again = locks.lock(&1).await;
        assert_eq!(locks.locks.lock().unwrap().len(), 1);
    }
}
