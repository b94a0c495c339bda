;; A trap in the start function.
;; start: `instantiate` | `unreachable`
(func $begin unreachable)
(start $begin)
