;; Points the decision at memory of its own: the host reads where it has asked for the answer.
;; base
(func $route (param i32 i32 i32) (result i32)
    (i32.store offset=8 (local.get 2) (i32.const -16))
    (i32.store offset=12 (local.get 2) (i32.const -16))
    (i32.store offset=16 (local.get 2) (i32.const -16))
    (i32.store offset=8 (local.get 1) (i32.const 1000000))
    (i32.const 0))
