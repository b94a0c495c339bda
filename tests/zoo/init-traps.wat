;; A trap in init.
;; start: `init` | `unreachable`
(func $init (param i32) (result i32) unreachable)
