;; Decides every row: column 1 with the weight 0.5. The measure for what the others leave intact.
;; serves
(func $route (param i32 i32 i32) (result i32) (call $good (local.get 1) (local.get 2)))
