;; A trap while planning.
;; plan: `plan` | `unreachable` instruction executed
(func $plan (param i32 i32) (result i32) unreachable)
