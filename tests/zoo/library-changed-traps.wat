;; A trap when it hears of the library.
;; start: `library_changed` | `unreachable`
(func $library_changed (param i32 i32 i32) (result i32) unreachable)
