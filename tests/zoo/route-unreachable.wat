;; A trap while deciding rows.
;; traps: `route` | `unreachable` instruction executed
(func $route (param i32 i32 i32) (result i32) unreachable)
