//! The cursor of `GET /tasks`: the place where the next page begins, bound to the tenant and the
//! filters it was made for. Pure.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::store::ListFilter;
use crate::task::TaskId;

/// Bytes of the id, and of the check that follows it.
const ID_BYTES: usize = 16;
const CHECK_BYTES: usize = 8;

/// The cursor for the page after `last`.
pub(super) fn encode(last: TaskId, tenant: &str, filter: &ListFilter) -> String {
    let check = check(last, tenant, filter);
    last.0.as_bytes().iter().chain(&check).map(|byte| format!("{byte:02x}")).collect()
}

/// The task a cursor stands at; `None` where it was not made for this tenant and these filters.
pub(super) fn decode(cursor: &str, tenant: &str, filter: &ListFilter) -> Option<TaskId> {
    if cursor.len() != 2 * (ID_BYTES + CHECK_BYTES) || !cursor.is_ascii() {
        return None;
    }
    let id = TaskId(Uuid::from_u128(u128::from_str_radix(cursor.split_at(2 * ID_BYTES).0, 16).ok()?));
    (encode(id, tenant, filter) == cursor).then_some(id)
}

/// A check against mistakes and not a secret: whoever makes up a cursor only starts elsewhere in a
/// list that is his own, since every read is by the tenant of the request.
fn check(last: TaskId, tenant: &str, filter: &ListFilter) -> [u8; CHECK_BYTES] {
    let ListFilter { status, task_type, error_kind, created_after, created_before, labels } = filter;
    // Debug quotes strings, so no two different sets of filters are written alike.
    let bound =
        format!("{tenant:?} {status:?} {task_type:?} {error_kind:?} {created_after:?} {created_before:?} {labels:?}");
    let mut check = [0; CHECK_BYTES];
    let digest = Sha256::new().chain_update(last.0.as_bytes()).chain_update(bound).finalize();
    check.copy_from_slice(&digest[..CHECK_BYTES]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Status, Timestamp};

    #[test]
    fn a_cursor_is_good_for_its_tenant_and_filters_only() {
        let id = TaskId(Uuid::now_v7());
        let filter = ListFilter { status: Some(Status::Failed), task_type: Some("io".into()), ..Default::default() };
        let cursor = encode(id, "default", &filter);
        assert_eq!(decode(&cursor, "default", &filter), Some(id));
        assert_eq!(decode(&cursor, "other", &filter), None);
        for changed in [
            ListFilter::default(),
            ListFilter { status: Some(Status::Completed), ..filter.clone() },
            ListFilter { task_type: None, ..filter.clone() },
            ListFilter { labels: vec![("a".into(), "b".into())], ..filter.clone() },
            ListFilter { created_after: Some(Timestamp(1)), ..filter.clone() },
            ListFilter { created_before: Some(Timestamp(1)), ..filter.clone() },
        ] {
            assert_eq!(decode(&cursor, "default", &changed), None, "{changed:?}");
        }
    }

    #[test]
    fn garbage_is_refused() {
        let filter = ListFilter::default();
        let good = encode(TaskId(Uuid::now_v7()), "default", &filter);
        let mut other_place = good.clone();
        other_place.replace_range(0..1, if good.starts_with('f') { "e" } else { "f" });
        for bad in ["", "x", &good[1..], &good.to_uppercase(), &"é".repeat(24), &"+".repeat(48), &other_place] {
            assert_eq!(decode(bad, "default", &filter), None, "{bad}");
        }
    }
}
