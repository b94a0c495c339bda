;; Leaves rows to nobody.
;; leaves
(func $route (param i32 i32 i32) (result i32) (i32.const 1))
