;; Fails, though it has decided.
;; fails: `route` gave no reason
(func $route (param i32 i32 i32) (result i32)
    (drop (call $good (local.get 1) (local.get 2))) (i32.const 4))
