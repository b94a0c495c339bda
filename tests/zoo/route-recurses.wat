;; A stack overflow on the engine's thread.
;; traps: `route` | call stack exhausted
(func $route (param i32 i32 i32) (result i32)
    (i32.add (i32.const 1) (call $route (local.get 0) (local.get 1) (local.get 2))))
