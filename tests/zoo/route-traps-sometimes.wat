;; Well-behaved, but every third call traps.
;; sometimes: `route` | `unreachable`
(func $route (param i32 i32 i32) (result i32)
    (global.set $seen (i32.add (global.get $seen) (i32.const 1)))
    (if (i32.eq (global.get $seen) (i32.const 3)) (then unreachable))
    (call $good (local.get 1) (local.get 2)))
