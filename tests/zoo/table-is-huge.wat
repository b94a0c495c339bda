;; A larger table than `table_elements`.
;; breaks: table_elements
;; load: table
(table 10001 funcref)
